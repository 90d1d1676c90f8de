"""What a run records, and what is computed of it: latencies, goodput, hits, money, and how sure one may be of them."""

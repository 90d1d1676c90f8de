"""Workers: the pure engine, the torch model, the data plane between workers, and the process around them."""

"""Tests of KV events; a package, so that they can share `engines` and `publisher`."""

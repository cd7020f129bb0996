"""`jaxpneumo bench`: how fast the parts of the system are on this machine, beside what they could be."""

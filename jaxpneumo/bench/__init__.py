"""`jaxpneumo bench`: measures the speed of the parts of the system, and compares it with the machine's limits."""

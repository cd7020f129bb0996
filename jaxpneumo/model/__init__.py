"""The network, and weights from other libraries."""

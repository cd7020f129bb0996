"""jaxpneumo: finds and outlines pneumothorax in chest radiographs with JAX. Not a medical device."""

__version__ = "0.1.0"

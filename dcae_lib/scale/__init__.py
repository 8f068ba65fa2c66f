"""More than one process, and more images than memory holds."""

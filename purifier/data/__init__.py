"""Loading images: DATA specs, named data sets, folders; pixel space."""

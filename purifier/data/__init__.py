"""Images in: DATA specs, named sets, folders; pixel space."""

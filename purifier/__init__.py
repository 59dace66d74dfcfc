"""purifier: a learned filter in front of an image classifier, and an honest attack on both."""

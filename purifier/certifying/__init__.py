"""Certificates: proofs that no image within a radius changes an answer, each with the confidence that it holds."""

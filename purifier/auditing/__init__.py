"""Audits: attacks x threats x routes over data, judged on the guard, into a report."""

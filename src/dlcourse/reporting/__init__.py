"""Reporting: the result, its card and its figures."""

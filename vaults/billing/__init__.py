"""Quotas in the API and the console."""

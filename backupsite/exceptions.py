"""Refusal -> HTTP status, in one place."""

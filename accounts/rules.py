"""Loaded by the rules app at start: registers the permissions."""

from accounts import permissions as permissions

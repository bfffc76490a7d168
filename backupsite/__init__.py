"""The Django project. Importing it loads the Celery app, so that tasks bind to it."""

from backupsite.celery import app as celery_app

__all__ = ["celery_app"]

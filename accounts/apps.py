from django.apps import AppConfig
from django.db.models.signals import post_migrate

from accounts.guards import after_migrate


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        post_migrate.connect(after_migrate, sender=self)
        # Receivers use models, which are there only now.
        from accounts import signals as signals
        from accounts.billing import console as console

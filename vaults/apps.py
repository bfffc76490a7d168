from django.apps import AppConfig
from django.db.models.signals import post_migrate

from vaults.guards import after_migrate


class VaultsConfig(AppConfig):
    name = "vaults"

    def ready(self) -> None:
        post_migrate.connect(after_migrate, sender=self)
        # Pages use models, which are there only now.
        from vaults.billing import console as console

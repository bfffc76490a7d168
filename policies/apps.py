from django.apps import AppConfig


class PoliciesConfig(AppConfig):
    name = "policies"

    def ready(self) -> None:
        # Models are there only now.
        from policies import copies
        from vaults import replication

        replication.checks_at_vault.append(copies.check_at_vault)

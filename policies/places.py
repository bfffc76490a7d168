"""Where the rules of a policy let backups and copies go."""

from typing import Any

from accounts.refusals import Refused
from policies.models import Policy, Rule, RuleType
from vaults.models import Region, Vault, VaultType


class PlaceUnfit(Refused):
    """A rule names no place where backups or copies could go."""

    code = "place_unfit"


def check(policy: Policy, rules: list[Rule]) -> None:
    """Refuse rules that name no place where backups or copies could go (E9, E26)."""
    vault = policy.vault
    if vault is not None and vault.account_id != policy.account_id:
        raise PlaceUnfit(f"{vault} belongs to another account.")
    if vault is not None and vault.type != VaultType.GENERAL:
        raise PlaceUnfit(f"{vault} is a replication target and takes no plans. Choose a general vault.")
    if vault is None and any(rule.type == RuleType.TAG for rule in rules):
        raise PlaceUnfit("Name the policy's vault: sources that a rule of type tag finds are backed up into it.")
    copying = [rule for rule in rules if rule.type == RuleType.REPLICATION]
    if len(copying) > 1:
        raise PlaceUnfit("A policy has one rule of type replication: a vault has one replication target.")
    for rule in copying:
        _check_target(policy, rule.settings)


def _check_target(policy: Policy, settings: dict[str, Any]) -> None:
    name, target = settings.get("region"), settings.get("vault")
    if not Region.objects.filter(name=name).exists():
        raise PlaceUnfit(f"There is no region {name!r} to copy to.")
    if policy.vault is not None and policy.vault.region.name == name:
        raise PlaceUnfit(f"{policy.vault} lies in {name} itself: copies go to another region (E29).")
    targets = Vault.objects.present().filter(account=policy.account_id, region__name=name, name=target)
    if target and not targets.filter(type=VaultType.REPLICATION_TARGET).exists():
        raise PlaceUnfit(f"There is no replication target {target!r} in {name}. Make it first, or leave the vault out.")

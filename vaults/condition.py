"""How a vault is: coverage, damage, last results, next moments. Reads what its jobs left; asks no store."""

import datetime as dt
from typing import Any

from accounts.console import human_bytes
from vaults.models import Vault

# The kinds of upkeep that are told of, in this order.
LABELS = {
    "verify": "Verify",
    "audit": "Lock audit",
    "expire": "Expiry",
    "prune": "Prune",
    "compact": "Compaction",
    "disaster": "Disaster check",
}
DRILLS_SHOWN = 20
DRILL_NUMBERS = ("percent", "seed", "files", "bytes", "streamed", "differences", "seconds", "bytes_per_s")
_ENDED = ("complete", "partial_complete", "failed", "canceled")


def of(vault: Vault) -> dict[str, Any]:
    """Return the vault's condition, in the words of the API."""
    return {"coverage": vault, **damage(vault), "work": work(vault), "export": getattr(vault, "system_export", None)}


def damage(vault: Vault) -> dict[str, Any]:
    """Return what the last verification that came to its end found damaged, with the points and files it touches."""
    last = vault.jobs.filter(kind="verify", state__in=("complete", "failed"), report__has_key="level").first()
    found = last.report.get("problems", []) if last else []
    return {
        "verified_at": last.ended_at if last else None,
        "damaged_total": last.problems_count if last else 0,
        "damaged": [
            {
                "object": one["path"],
                "damage": one["reason"],
                "detail": one["detail"],
                "points": one.get("points", []),
                "files": one.get("files", 0),
                "first_files": one.get("first_files", []),
                "advice": one.get("advice", ""),
            }
            for one in found
        ],
    }


def work(vault: Vault) -> list[dict[str, Any]]:
    """Return, for each kind of upkeep, how its last job ended and when it is due next. Two queries a kind at most."""
    due = dict(vault.duties.values_list("kind", "due_at"))
    rows = []
    for kind in LABELS:
        last = vault.jobs.filter(kind=kind, state__in=_ENDED).first()
        rows.append(
            {
                "kind": kind,
                "label": LABELS[kind],
                "state": last.state if last else "",
                "state_label": last.get_state_display() if last else "",
                "job": last.pk if last else None,
                "ended_at": last.ended_at if last else None,
                "summary": (last.error or summary(kind, last.report)) if last else "",
                "due_at": due.get(kind),
            }
        )
    return rows


def summary(kind: str, report: dict[str, Any]) -> str:
    """Return one line about what a job did."""
    return "; ".join(_parts(kind, report))


def _parts(kind: str, report: dict[str, Any]) -> list[str]:
    if kind == "verify":
        return [f"{report.get('level', '')}: {report.get('objects', 0):,} objects, {_size(report, 'bytes')}"]
    if kind == "prune":
        waits = [f"waits for {len(report['waiting'])} sessions"] if report.get("waiting") else []
        return [f"{report.get('packs_deleted', 0):,} packs deleted, {_size(report, 'bytes_freed')} freed", *waits]
    if kind == "audit":
        proven = "a canary held" if report.get("is_proven") else report.get("level", "")
        longer = f"{report.get('lengthened', 0):,} locks made longer"
        return [f"{report.get('objects', 0):,} locks of {report.get('points', 0):,} points looked at", longer, proven]
    if kind == "expire":
        return [f"{report.get('expired', 0):,} points expired of {report.get('visible', 0):,}"]
    if kind == "disaster":
        found = "no difference" if not report.get("problems") else f"{len(report['problems'])} differences"
        made = f"{report.get('rows', 0):,} rows and {report.get('points', 0):,} points rebuilt"
        return [f"{made} in {report.get('seconds', 0):.1f} s", found]
    if kind == "drill":
        share = "" if report.get("percent") == 100 else f" ({report.get('percent')} %)"
        restored = f"{report.get('files', 0):,} files, {_size(report, 'bytes')}{share} restored and compared"
        speed = f"{human_bytes(report.get('bytes_per_s', 0))}/s"
        found = f"{report['differences']:,} differences" if report.get("differences") else "no difference"
        return [f"{restored} in {report.get('seconds', 0):.1f} s, {speed}", found]
    return []


def of_export(vault: Vault) -> str:
    """Say when the control plane's rows were last written into the bucket, empty when they never were."""
    kept = getattr(vault, "system_export", None)
    if kept is None or (kept.exported_at is None and not kept.error):
        return ""
    when = f"Its rows were written into the bucket on {kept.exported_at:%Y-%m-%d %H:%M}" if kept.exported_at else "–"
    return f"{when}. The last attempt failed: {kept.error}" if kept.error else f"{when}."


def drills(jobs: Any) -> list[dict[str, Any]]:
    """Return the last trial restores among the jobs of a source or a point, newest first."""
    ended = jobs.filter(kind="drill", state__in=_ENDED).select_related("point", "vault")[:DRILLS_SHOWN]
    return [
        {
            "job": job.pk,
            "state": job.state,
            "state_label": job.get_state_display(),
            "vault": job.vault_id,
            "vault_name": job.vault.name,
            "point": job.point_id,
            "ended_at": job.ended_at,
            "summary": job.error or summary("drill", job.report),
            **{name: job.report.get(name) for name in DRILL_NUMBERS},
        }
        for job in ended
    ]


def _size(report: dict[str, Any], name: str) -> str:
    return human_bytes(report.get(name, 0))


def note_coverage(vault: Vault, *, total: int, read: int, now: dt.datetime) -> None:
    """Store how many bytes the points need and how many of them were read in full within the last 30 days."""
    Vault.objects.filter(pk=vault.pk).update(coverage_total=total, coverage_read=read, coverage_at=now)

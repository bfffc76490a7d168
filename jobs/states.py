"""The states of jobs and steps, and the changes that are legal. A table; no imports but Django's choices."""

from django.db.models import TextChoices


class Kind(TextChoices):
    """What a job does."""

    BACKUP = "backup", "Backup"
    RESTORE = "restore", "Restore"
    VERIFY = "verify", "Verify"
    EXPIRE = "expire", "Expiry"
    PRUNE = "prune", "Prune"
    COMPACT = "compact", "Compaction"
    AUDIT = "audit", "Lock audit"
    REBUILD = "rebuild", "Rebuild"
    DRILL = "drill", "Restore drill"
    DISASTER = "disaster", "Disaster check"
    ERASE = "erase", "Deletion of the vault"
    REPLICATE = "replicate", "Replication"
    COMPARE = "compare", "Check of a restore"


# Of these a vault does one at a time each.
MAINTENANCE = (
    Kind.EXPIRE,
    Kind.PRUNE,
    Kind.COMPACT,
    Kind.AUDIT,
    Kind.REBUILD,
    Kind.DISASTER,
    Kind.ERASE,
    Kind.REPLICATE,
)
# These come due again and again in every vault.
RECURRING = (Kind.EXPIRE, Kind.PRUNE, Kind.COMPACT, Kind.VERIFY, Kind.AUDIT, Kind.DISASTER)
# This goes on by itself in every replication target; nobody sets its interval (E48).
CONTINUOUS = (Kind.REPLICATE,)
# In a replica these need the vault that it follows.
ACROSS = (Kind.REPLICATE, Kind.PRUNE)
DUTY_CHOICES = [(kind.value, kind.label) for kind in (*RECURRING, *CONTINUOUS)]


class JobState(TextChoices):
    CREATED = "created", "Created"
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    CANCELING = "canceling", "Canceling"
    COMPLETE = "complete", "Complete"
    PARTIAL_COMPLETE = "partial_complete", "Partially complete"
    FAILED = "failed", "Failed"
    CANCELED = "canceled", "Canceled"
    SKIPPED = "skipped", "Skipped"
    MISSED = "missed", "Missed"


ACTIVE = (JobState.CREATED, JobState.QUEUED, JobState.RUNNING, JobState.CANCELING)
ENDED = tuple(state for state in JobState if state not in ACTIVE)
ENDED_WELL = (JobState.COMPLETE, JobState.PARTIAL_COMPLETE)

# From each state, the states that may follow it. Skipped and missed jobs are born ended.
NEXT: dict[str, tuple[str, ...]] = {
    JobState.CREATED: (JobState.QUEUED, JobState.CANCELED, JobState.FAILED),
    JobState.QUEUED: (JobState.RUNNING, JobState.CANCELED, JobState.FAILED),
    JobState.RUNNING: (
        JobState.CANCELING,
        JobState.COMPLETE,
        JobState.PARTIAL_COMPLETE,
        JobState.FAILED,
        JobState.CANCELED,
    ),
    JobState.CANCELING: (JobState.CANCELED, JobState.COMPLETE, JobState.PARTIAL_COMPLETE, JobState.FAILED),
    **dict.fromkeys(ENDED, ()),
}


def before(state: str) -> tuple[str, ...]:
    """Return the states from which `state` may be reached: the condition of a conditional update."""
    return tuple(earlier for earlier, following in NEXT.items() if state in following)


class Stage(TextChoices):
    """The part of a verb that a step runs."""

    PLAN = "plan", "Plan"
    WORK = "work", "Work"
    FINISH = "finish", "Finish"


class StepState(TextChoices):
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    COMPLETE = "complete", "Complete"
    FAILED = "failed", "Failed"
    CANCELED = "canceled", "Canceled"


# How often a step is claimed before its job fails.
ATTEMPTS_MAX = 5
STEP_OPEN = (StepState.QUEUED, StepState.RUNNING)


class Trigger(TextChoices):
    """What started a job."""

    MANUAL = "manual", "Manual"
    SCHEDULED = "scheduled", "Scheduled"


class Lane(TextChoices):
    """In each lane of a source one backup runs at a time. A cluster has two (D8, D9), everything else has one."""

    ALL = "", "All"
    MANUAL = "manual", "Manual"
    AUTOMATIC = "automatic", "Automatic"

"""Every setting of the project, and every place where it reads the environment.

Two sets (docs/architecture.md, section 5). The embedded default needs no variable at all: SQLite, a Redis on
loopback and generated secrets, all under var/. As soon as DATABASE_URL or BROKER_URL is given, the installation
counts as full: secrets and host names must then be given too, and nothing starts with a generated one.

A variable NAME may also be given as NAME_FILE, the path of a file that holds the value (container secrets).
"""

import secrets
import socket
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import django_stubs_ext
import environ
import structlog
from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from django.urls import reverse_lazy

from backupsite import embedded

django_stubs_ext.monkeypatch()

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.FileAwareEnv()

# --- Where this installation keeps its own files -------------------------------------------------------------

VAR = Path(env.str("BACKUPSITE_VAR", default=str(BASE_DIR / "var"))).absolute()
VAR.mkdir(parents=True, exist_ok=True, mode=0o700)
EMBEDDED = not env.str("DATABASE_URL", default="") and not env.str("BROKER_URL", default="")


def _secret(name: str, *, file: str, fresh: str) -> str:
    """Return a secret from the environment, or the one that the embedded default generated once."""
    value: str = env.str(name, default="")
    if value:
        return value
    if EMBEDDED:
        return embedded.kept(VAR / file, fresh)
    raise ImproperlyConfigured(f"Set {name} or {name}_FILE: a full installation never starts with a generated secret.")


SECRET_KEY = _secret("SECRET_KEY", file="secret.key", fresh=secrets.token_urlsafe(50))
# Keys for credentials in the database: hex of 32 bytes each, comma-separated. The first encrypts, all decrypt.
FIELD_KEYS = _secret("BACKUPSITE_FIELD_KEYS", file="field.keys", fresh=secrets.token_hex(32)).split(",")
# The service keyring that opens the vaults (engine/keyproviders). Losing it leaves only the recovery keys.
# KEYRING is its text, in place of the file: for machines that get their secrets in the environment.
KEYRING = env.str("BACKUPSITE_KEYRING", default="")
KEYRING_FILE = Path(env.str("BACKUPSITE_KEY_FILE", default=str(VAR / "service.key")))
# Local copies of vault indexes, one folder per vault; free to delete while no worker runs.
CACHE_DIR = Path(env.str("BACKUPSITE_CACHE_DIR", default=str(VAR / "cache")))
# Where restore drills and disaster checks work; emptied by them. A drill needs DRILL_BYTES_MAX for each of its workers.
SCRATCH_DIR = Path(env.str("BACKUPSITE_SCRATCH_DIR", default=str(VAR / "scratch")))
DRILL_BYTES_MAX = env.int("BACKUPSITE_DRILL_BYTES_MAX", default=4 << 30)
# A vault's bucket gets a new export of the control plane's rows so many seconds after a change, and daily.
EXPORT_EVERY_S = env.int("BACKUPSITE_EXPORT_EVERY_S", default=180)
# For `manage.py rebuild_from_bucket` alone: while there is no database, there is no region that knows them.
RECOVERY_ACCESS_KEY = env.str("BACKUPSITE_S3_ACCESS_KEY", default=env.str("AWS_ACCESS_KEY_ID", default=""))
RECOVERY_SECRET_KEY = env.str("BACKUPSITE_S3_SECRET_KEY", default=env.str("AWS_SECRET_ACCESS_KEY", default=""))

# --- Web -----------------------------------------------------------------------------------------------------

DEBUG = False
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]", "testserver"] if EMBEDDED else [])
if not EMBEDDED and not ALLOWED_HOSTS:
    raise ImproperlyConfigured("Set ALLOWED_HOSTS to the names under which people reach the console.")
# The address that people type, e.g. https://backup.example.org. Decides about secure cookies.
SITE_URL = env.str("BACKUPSITE_URL", default="http://127.0.0.1:8000")
HTTPS = SITE_URL.startswith("https://")
CSRF_TRUSTED_ORIGINS = [SITE_URL]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_AGE = 12 * 3600
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
ROOT_URLCONF = "backupsite.urls"
WSGI_APPLICATION = "backupsite.wsgi.application"
LOGIN_URL = reverse_lazy("admin:login")
LOGIN_REDIRECT_URL = reverse_lazy("admin:index")

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "rest_framework",
    "knox",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "drf_standardized_errors",
    "rules.apps.AutodiscoverRulesConfig",
    "axes",
    "csp",
    "django_celery_beat",
    "accounts",
    "vaults",
    "policies",
    "jobs",
    "backupsite",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "accounts.middleware.DenialsRecorded",
    "axes.middleware.AxesMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "backupsite" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
# The console's Alpine build evaluates expressions ('unsafe-eval'); scripts from elsewhere or inline never run.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF, UNSAFE_EVAL],
        "style-src": [SELF, UNSAFE_INLINE],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "object-src": [NONE],
        "base-uri": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}
UNFOLD = {
    "SITE_TITLE": "Backupsite",
    "SITE_HEADER": "Backupsite",
    "SITE_SUBHEADER": "Cloud backup",
    "SITE_SYMBOL": "cloud_done",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("backupsite/favicon.svg")}
    ],
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_HISTORY": False,
    "DASHBOARD_CALLBACK": "backupsite.console.dashboard",
    "COLORS": {
        "primary": {
            "50": "oklch(97.7% .013 236.62)",
            "100": "oklch(95.1% .026 236.824)",
            "200": "oklch(90.1% .058 230.902)",
            "300": "oklch(82.8% .111 230.318)",
            "400": "oklch(74.6% .16 232.661)",
            "500": "oklch(68.5% .169 237.323)",
            "600": "oklch(52% .135 241.966)",
            "700": "oklch(46% .12 242.749)",
            "800": "oklch(40% .1 240.79)",
            "900": "oklch(34% .08 240.876)",
            "950": "oklch(26% .06 243.157)",
        },
    },
    "SIDEBAR": {"show_search": False, "navigation": "backupsite.console.navigation"},
}
STATIC_URL = "/static/"
STATIC_ROOT = VAR / "static"
STATIC_ROOT.mkdir(exist_ok=True)
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = EMBEDDED  # the embedded default serves without a collectstatic run

# --- People ----------------------------------------------------------------------------------------------------

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "rules.permissions.ObjectPermissionBackend",
    "django.contrib.auth.backends.ModelBackend",
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
AXES_FAILURE_LIMIT = 8
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_HANDLER = "axes.handlers.database.AxesDatabaseHandler"
AXES_VERBOSE = False

# --- Database and cache ----------------------------------------------------------------------------------------

DATABASES: dict[str, Any] = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{VAR / 'backupsite.sqlite3'}")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # Measured: with Django's defaults one transaction in eight of six writing processes fails as "locked"; so, none.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,  # seconds
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
    }
    # A file, not memory: tests of races need connections that lock each other as they do in service.
    DATABASES["default"]["TEST"] = {"NAME": str(VAR / "test.sqlite3")}
else:
    DATABASES["default"]["CONN_MAX_AGE"] = 60  # seconds
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
# Request counts. Shared by all web processes; the embedded default has one and counts in its memory.
CACHES: dict[str, Any] = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
if not EMBEDDED and (cache_url := env.str("CACHE_URL", default=env.str("BROKER_URL", default=""))):
    CACHES["default"] = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": cache_url}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Celery: the message is a doorbell, the row is the truth ----------------------------------------------------

BROKER_URL = env.str("BROKER_URL", default="") or embedded.broker_url(VAR)
CELERY_BROKER_URL = BROKER_URL
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 20.0  # seconds
CELERY_WORKER_ENABLE_SOFT_SHUTDOWN_ON_IDLE = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_MAX_MEMORY_PER_CHILD = env.int("BACKUPSITE_WORKER_KIB_MAX", default=1_500_000)  # KiB resident
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# Every worker must have the same visibility time-out: redelivery is driven by whichever worker sweeps.
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 3600,  # seconds
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "socket_timeout": 30,  # seconds
    "socket_connect_timeout": 5,  # seconds
    "socket_keepalive": True,
    "health_check_interval": 25,  # seconds
}
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "jobs.beat:LeasedDatabaseScheduler"

# How long a worker owns a step without a heartbeat, in seconds. A dead worker's step is taken over after it.
STEP_LEASE_S = env.int("BACKUPSITE_STEP_LEASE_S", default=90)
# How often a running step renews its lease and tells its progress, in seconds.
STEP_HEARTBEAT_S = env.float("BACKUPSITE_STEP_HEARTBEAT_S", default=2.0)
# How often a running step looks whether a person canceled its job, in seconds.
STEP_CANCEL_CHECK_S = env.float("BACKUPSITE_STEP_CANCEL_CHECK_S", default=1.0)
# After how many seconds without a claim a queued step's doorbell is rung again.
STEP_RING_AGAIN_S = env.int("BACKUPSITE_STEP_RING_AGAIN_S", default=300)
# How often the sweeps run, in seconds.
SWEEP_S = env.int("BACKUPSITE_SWEEP_S", default=15)
# How often each kind of maintenance is done in a vault, in seconds; a vault may have its own numbers, 0 is never.
MAINTENANCE_EVERY_S = {
    "expire": env.int("BACKUPSITE_EXPIRE_EVERY_S", default=3600),
    "prune": env.int("BACKUPSITE_PRUNE_EVERY_S", default=24 * 3600),
    "compact": env.int("BACKUPSITE_COMPACT_EVERY_S", default=7 * 24 * 3600),
    "verify": env.int("BACKUPSITE_VERIFY_EVERY_S", default=24 * 3600),
    "audit": env.int("BACKUPSITE_AUDIT_EVERY_S", default=24 * 3600),
    "disaster": env.int("BACKUPSITE_DISASTER_EVERY_S", default=7 * 24 * 3600),
    # Also at once after each backup; this catches up with what was missed while a region was away.
    "replicate": env.int("BACKUPSITE_REPLICATE_EVERY_S", default=900),
}
# After how many seconds a prune that waits for running sessions goes on.
MAINTENANCE_AGAIN_S = env.int("BACKUPSITE_MAINTENANCE_AGAIN_S", default=300)
# For how many days the jobs of recurring maintenance that ended well are kept; what failed stays.
ROUTINE_KEPT_DAYS = env.int("BACKUPSITE_ROUTINE_KEPT_DAYS", default=90)
# In how many days the recurring verification reads every byte of a vault once.
SCRUB_DAYS = env.int("BACKUPSITE_SCRUB_DAYS", default=30)
# After how many seconds "keep at least one" ends once it was switched off; below an hour with the expiry that follows.
KEEP_ONE_GRACE_S = env.int("BACKUPSITE_KEEP_ONE_GRACE_S", default=3000)
# A host counts as running while its worker was seen within so many seconds.
WORKER_SEEN_S = env.int("BACKUPSITE_WORKER_SEEN_S", default=60)
# Internal networks in which sources may lie, comma-separated, e.g. 10.0.0.0/8,fd00::/8; others are refused. Every
# process goes by its own: give workers the same as the web process.
try:
    SOURCE_NETWORKS = [ip_network(text.strip()) for text in env.list("BACKUPSITE_SOURCE_NETWORKS", default=[])]
except ValueError as error:
    raise ImproperlyConfigured(f"BACKUPSITE_SOURCE_NETWORKS must be networks separated by commas: {error}.") from error
# How long a trial connection to a source may take, in seconds.
SOURCE_CHECK_S = env.float("BACKUPSITE_SOURCE_CHECK_S", default=15.0)
# The mail server that alerts go through, e.g. smtp+tls://user:password@mail.example.org:587; empty is no e-mail.
EMAIL_URL = env.str("EMAIL_URL", default="")
EMAIL_ON = bool(EMAIL_URL)
if EMAIL_ON:
    if urlsplit(EMAIL_URL).scheme not in ("smtp", "smtp+tls", "smtp+ssl") or not urlsplit(EMAIL_URL).hostname:
        raise ImproperlyConfigured("EMAIL_URL must look like smtp+tls://user:password@mail.example.org:587.")
    vars().update(environ.Env.email_url_config(EMAIL_URL))
EMAIL_TIMEOUT = 15  # seconds
DEFAULT_FROM_EMAIL = env.str(
    "BACKUPSITE_EMAIL_FROM", default=f"Backupsite <backupsite@{urlsplit(SITE_URL).hostname or 'localhost'}>"
)
# A replica is late when a point has waited so many hours to be copied.
REPLICATION_LATE_HOURS = env.int("BACKUPSITE_REPLICATION_LATE_HOURS", default=24)
# For how many days alerts that are over are kept.
ALERTS_KEPT_DAYS = env.int("BACKUPSITE_ALERTS_KEPT_DAYS", default=365)
# The name under which this machine's worker serves the sources of its host.
HOST_NAME = env.str("BACKUPSITE_HOST", default=socket.gethostname())

# How data that is restored reaches this machine: LAN, VPN or INTERNET; empty is as the source's region says.
NETWORK_CLASS = env.str("BACKUPSITE_NETWORK", default="")
if NETWORK_CLASS not in ("", "LAN", "VPN", "INTERNET"):
    raise ImproperlyConfigured(f"BACKUPSITE_NETWORK must be LAN, VPN or INTERNET, not {NETWORK_CLASS!r}.")
# For how many points of a vault a person is told at once what deleting some of them would free.
FREED_POINTS_MAX = env.int("BACKUPSITE_FREED_POINTS_MAX", default=2000)

# --- API ---------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "accounts.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "backupsite.description.Description",
    "DEFAULT_THROTTLE_RATES": {
        "anon": env.str("BACKUPSITE_RATE_ANON", default="30/min"),
        "user": env.str("BACKUPSITE_RATE_USER", default="1200/min"),
    },
    "DEFAULT_THROTTLE_CLASSES": [
        "backupsite.throttles.AddressThrottle",
        "backupsite.throttles.PersonThrottle",
    ],
    "EXCEPTION_HANDLER": "drf_standardized_errors.handler.exception_handler",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
    "NUM_PROXIES": env.int("BACKUPSITE_PROXIES", default=0),
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
DRF_STANDARDIZED_ERRORS = {
    "EXCEPTION_HANDLER_CLASS": "backupsite.exceptions.Handler",
    "ALLOWED_ERROR_STATUS_CODES": ["400", "401", "403", "404", "409", "429"],
    "ERROR_SCHEMAS": dict.fromkeys(("400", "401", "403", "404", "409", "429"), "backupsite.exceptions.ErrorSerializer"),
}
REST_KNOX = {"TOKEN_TTL": None, "AUTO_REFRESH": False, "TOKEN_PREFIX": "bs_"}
KNOX_TOKEN_MODEL = "knox.AuthToken"  # noqa: S105  # a model; migrations that refer to it want this
# After how many days a token that a person makes for a program ends, unless told; and at most. How many one may have.
TOKEN_DAYS = env.int("BACKUPSITE_TOKEN_DAYS", default=90)
TOKEN_DAYS_MAX = env.int("BACKUPSITE_TOKEN_DAYS_MAX", default=366)
TOKENS_MAX = env.int("BACKUPSITE_TOKENS_MAX", default=50)
if not 1 <= TOKEN_DAYS <= TOKEN_DAYS_MAX:
    raise ImproperlyConfigured("BACKUPSITE_TOKEN_DAYS must be 1 to BACKUPSITE_TOKEN_DAYS_MAX.")
SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Backupsite",
    "DESCRIPTION": "Protects data sources by policy: schedules, vaults, recovery points, restores.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": r"/api/v1",
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "backupsite.description.let_shapes_overlap",
    ],
    "ENUM_NAME_OVERRIDES": {
        "Privilege": "accounts.states.Privilege",
        "GrantedPrivilege": ["backup", "restore"],
        "SourceKind": "policies.models.SourceKind",
        "VaultType": "vaults.models.VaultType",
        "EntryKind": "vaults.serializers.ENTRY_KINDS",
        "ErrorType": "backupsite.exceptions.ERROR_TYPES",
        "Edition": "policies.models.Edition",
        "BackupKind": ["backup"],
        "RestoreKind": ["restore"],
        "VerifyKind": ["verify"],
        "ExpireKind": ["expire"],
        "PruneKind": ["prune"],
        "CompactKind": ["compact"],
        "AuditKind": ["audit"],
        "RebuildKind": ["rebuild"],
        "DrillKind": ["drill"],
        "DisasterKind": ["disaster"],
        "DutyKind": "jobs.states.DUTY_CHOICES",
        "Meter": "accounts.metering.Meter",
        "PricedMeter": "accounts.metering.PRICED_CHOICES",
        "JobKind": "jobs.states.Kind",
        "JobState": "jobs.states.JobState",
        "StepState": "jobs.states.StepState",
        "PlanState": "policies.models.PlanState",
        "Severity": ["info", "warning", "critical"],
        "Role": "accounts.states.Role",
        "AlertState": "jobs.alert_models.AlertState",
        "AlertType": "jobs.alert_models.AlertType",
        "ChannelKind": "jobs.alert_models.ChannelKind",
        "DeliveryState": "jobs.alert_models.DeliveryState",
        "VaultState": "vaults.models.VaultState",
        "PointState": "vaults.models.PointState",
    },
}

# --- Language, time, logs -----------------------------------------------------------------------------------------

LANGUAGE_CODE = "en"
FORMAT_MODULE_PATH = ["backupsite.formats"]
USE_I18N = True
USE_TZ = True
TIME_ZONE = "UTC"

_SHARED_PROCESSORS: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]
structlog.configure(
    processors=[*_SHARED_PROCESSORS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": structlog.stdlib.ProcessorFormatter,
            "processor": structlog.processors.JSONRenderer(),
            "foreign_pre_chain": _SHARED_PROCESSORS,
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": env.str("BACKUPSITE_LOG_LEVEL", default="INFO")},
    "loggers": {"axes": {"level": "WARNING"}},
}

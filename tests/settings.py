"""The project's settings for tests: the same ones, with their own folder and made-up secrets.

Variables that are set win, so the same tests run on PostgreSQL: DATABASE_URL=... python -m pytest.
"""

import atexit
import os
import shutil
import tempfile

if "BACKUPSITE_VAR" not in os.environ:
    os.environ["BACKUPSITE_VAR"] = tempfile.mkdtemp(prefix="backupsite-tests-")
    atexit.register(shutil.rmtree, os.environ["BACKUPSITE_VAR"], ignore_errors=True)
elif worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["BACKUPSITE_VAR"] = os.path.join(os.environ["BACKUPSITE_VAR"].partition("/xdist-")[0], f"xdist-{worker}")

os.environ.setdefault("SECRET_KEY", "only-for-tests-" + "x" * 40)
os.environ.setdefault("BACKUPSITE_FIELD_KEYS", "00" * 32)
os.environ.setdefault("ALLOWED_HOSTS", "127.0.0.1,localhost,testserver")

from backupsite.settings import *  # noqa: F403  # a settings module is its names; the variables must come first

# What a test need not pay for: a hash that takes long on purpose, and a look at all static files for each client.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
WHITENOISE_AUTOREFRESH = True

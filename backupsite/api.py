"""The API's router: every endpoint of the product on one screen."""

from rest_framework.routers import SimpleRouter

from accounts.views import AccountView, EventView, TokenView
from jobs.views import JobView
from policies.views import PlanView, PolicyView, SourceView
from vaults.views import RecoveryPointView, RegionView, VaultView

router = SimpleRouter(use_regex_path=True)
router.register("tokens", TokenView, basename="token")
router.register("accounts", AccountView, basename="account")
router.register("events", EventView, basename="event")
router.register("regions", RegionView, basename="region")
router.register("vaults", VaultView, basename="vault")
router.register("recovery-points", RecoveryPointView, basename="point")
router.register("sources", SourceView, basename="source")
router.register("policies", PolicyView, basename="policy")
router.register("plans", PlanView, basename="plan")
router.register("jobs", JobView, basename="job")

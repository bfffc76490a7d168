"""The API's router: every endpoint of the product on one screen."""

from rest_framework.routers import SimpleRouter

from accounts.billing.views import AllowanceView, PriceView, UsageView
from accounts.views import EventView, RoleView, TokenView
from jobs.alert_views import AlertRuleView, AlertView, ChannelView, SilenceView, WatchedPlanView
from jobs.host_views import HostView
from jobs.views import ClosableAccountView, ErasableSourceView, JobView, KeptPointView, MaintainedVaultView
from policies.edition_views import EditionView
from policies.views import GrantView, PolicyView
from vaults.billing.views import QuotaView
from vaults.views import RegionView

router = SimpleRouter(use_regex_path=True)
router.register("tokens", TokenView, basename="token")
router.register("accounts", ClosableAccountView, basename="account")
router.register("roles", RoleView, basename="role")
router.register("events", EventView, basename="event")
router.register("regions", RegionView, basename="region")
router.register("vaults", MaintainedVaultView, basename="vault")
router.register("recovery-points", KeptPointView, basename="point")
router.register("sources", ErasableSourceView, basename="source")
router.register("policies", PolicyView, basename="policy")
router.register("plans", WatchedPlanView, basename="plan")
router.register("grants", GrantView, basename="grant")
router.register("editions", EditionView, basename="edition")
router.register("hosts", HostView, basename="host")
router.register("jobs", JobView, basename="job")
router.register("alerts", AlertView, basename="alert")
router.register("alert-rules", AlertRuleView, basename="alert_rule")
router.register("channels", ChannelView, basename="channel")
router.register("silences", SilenceView, basename="silence")
router.register("quotas", QuotaView, basename="quota")
router.register("usage", UsageView, basename="usage")
router.register("prices", PriceView, basename="price")
router.register("allowances", AllowanceView, basename="allowance")

"""Every address of the site."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from backupsite import health
from backupsite.api import router
from jobs.zilliz import ClusterPolicyView

cluster_policy = ClusterPolicyView.as_view({"get": "retrieve", "post": "set"}, basename="cluster-policy")

handler404 = "backupsite.exceptions.not_found"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("api/v1/", include(router.urls)),
    path("api/v1/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/v1/docs/", SpectacularSwaggerSplitView.as_view(url_name="schema"), name="docs"),
    path("v2/clusters/<str:cluster>/backups/policy", cluster_policy),
    path("healthz", health.ready),
    path("healthz/live", health.live, name="live"),
    path("healthz/ready", health.ready, name="ready"),
]

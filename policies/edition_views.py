"""Endpoints of editions: what they lay down, plans of buckets on the page of their source, the end of a trial."""

from typing import Any, ClassVar

from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field, extend_schema_serializer
from rest_framework import serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.permissions import MANAGE_POLICIES, MANAGE_SOURCES, MANAGE_VAULTS
from accounts.serializers import OwnField
from accounts.views import actor_of
from policies import editions, services, trials
from policies.models import Edition, Plan, Policy, Source
from policies.serializers import PlanSerializer, SourceRequestSerializer, SourceSerializer
from policies.views import PlanView, SourceView
from vaults.models import Vault


class AspectSerializer(serializers.Serializer[Any]):
    """One line of the comparison of a trial and a full plan."""

    aspect = serializers.CharField()
    trial = serializers.CharField()
    full = serializers.CharField()


class TermsSerializer(serializers.Serializer[Any]):
    """What one edition lays down. `daily`: one run a day; `start_fixed`: nobody chooses when."""

    edition = serializers.ChoiceField(choices=Edition.choices)
    name = serializers.CharField()
    days_min = serializers.IntegerField()
    days_max = serializers.IntegerField()
    daily = serializers.BooleanField()
    start_fixed = serializers.BooleanField()


class PrioritySerializer(serializers.Serializer[Any]):
    """What a priority of essential host backup means. Above `day_bytes` a run may outlast a day."""

    priority = serializers.CharField()
    bytes_per_s = serializers.IntegerField()
    parallel_max = serializers.IntegerField()
    day_bytes = serializers.IntegerField()


class ExclusionSerializer(serializers.Serializer[Any]):
    """A path that essential host backup leaves out; `note` says what to look at before."""

    system = serializers.ChoiceField(choices=["linux", "windows"])
    path = serializers.CharField()
    note = serializers.CharField(allow_blank=True)


@extend_schema_serializer(many=False)  # one document, although its address is that of a list
class EditionsSerializer(serializers.Serializer[Any]):
    """All that editions lay down, to be shown before a plan is made."""

    comparison = AspectSerializer(many=True)
    terms = TermsSerializer(many=True)
    priorities = PrioritySerializer(many=True)
    excluded = ExclusionSerializer(many=True)


class BucketPlanRequestSerializer(serializers.Serializer[Any]):
    """A plan of a source. Nothing at all asks for a trial; a full plan (`standard`) names its policy and vault."""

    edition = serializers.ChoiceField(choices=[Edition.TRIAL, Edition.STANDARD], default=Edition.TRIAL)
    policy = OwnField(queryset=Policy.objects.all(), required=False)
    vault = OwnField(queryset=Vault.objects.all(), required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        named = {name for name in ("policy", "vault") if name in attrs}
        if attrs["edition"] == Edition.TRIAL and named:
            text = "A trial has its own. Leave it out, or ask for the edition standard."
            raise serializers.ValidationError(dict.fromkeys(named, text))
        if attrs["edition"] == Edition.STANDARD and len(named) < 2:
            text = "A full plan needs it."
            raise serializers.ValidationError(dict.fromkeys({"policy", "vault"} - named, text))
        return attrs


class NewPlanSerializer(serializers.Serializer[Any]):
    plan = PlanSerializer()
    recovery_key = serializers.CharField(
        allow_blank=True, help_text="Of the trial's own vault. Shown once, kept nowhere"
    )


class ConversionSerializer(serializers.Serializer[Any]):
    confirmed = serializers.BooleanField(default=False, help_text="A full plan costs, and never becomes a trial again")
    policy = OwnField(queryset=Policy.objects.all(), default=None, allow_null=True, help_text="null keeps its own")


class RegistrationSerializer(SourceRequestSerializer):
    """A new source; a bucket may get its plan in the same step (A24)."""

    scheduled_backup = serializers.BooleanField(
        default=False, write_only=True, help_text="Buckets: make a trial with it, or neither of them"
    )

    class Meta:
        model = Source
        fields = [*SourceRequestSerializer.Meta.fields, "scheduled_backup"]


class RegisteredSerializer(SourceSerializer):
    """A new source, with what came about with it; needs `made`, a Trial or None, in the context."""

    plan = serializers.SerializerMethodField()
    recovery_key = serializers.SerializerMethodField()

    class Meta:
        model = Source
        fields = [*SourceSerializer.Meta.fields, "plan", "recovery_key"]

    @extend_schema_field(PlanSerializer(allow_null=True))
    def get_plan(self, source: Source) -> Any:
        made = self.context.get("made")
        return PlanSerializer(made.plan).data if made else None

    def get_recovery_key(self, source: Source) -> str:
        made = self.context.get("made")
        return made.recovery_key if made else ""


class EditionView(viewsets.ViewSet):
    """What the editions of plans lay down."""

    @extend_schema(responses={200: EditionsSerializer})
    def list(self, request: Request) -> Response:
        """Tell how a trial and a full plan differ, what each edition fixes, and what host backup leaves out."""
        terms = [{"edition": name, "name": Edition(name).label} | one._asdict() for name, one in editions.TERMS.items()]
        speeds = [{"priority": name} | one._asdict() for name, one in editions.SPEEDS.items()]
        excluded = [("linux", path) for path in editions.LINUX_EXCLUDED]
        excluded += [("windows", path) for path in editions.WINDOWS_EXCLUDED]
        found = {
            "comparison": [one._asdict() for one in editions.COMPARISON],
            "terms": terms,
            "priorities": speeds,
            "excluded": [
                {"system": system, "path": path, "note": editions.EXCLUDED_NOTES.get(path, "")}
                for system, path in excluded
            ],
        }
        return Response(EditionsSerializer(found).data)


class PlannedSourceView(SourceView):
    """Sources of the caller's accounts."""

    permissions: ClassVar = {**SourceView.permissions, "add_plan": MANAGE_POLICIES}

    @extend_schema(request=RegistrationSerializer, responses={201: RegisteredSerializer})
    def create(self, request: Request) -> Response:
        """Make a source. `warnings` in the answer tells what is worth knowing about it (B28).

        What is read over the network is tried before (A30): 409 `source_unreachable` tells what is wrong. With
        `scheduled_backup` a bucket gets its trial in the same step: both come about, or neither (A24).
        """
        values = dict(self.checked(RegistrationSerializer))
        made = None
        if values.pop("scheduled_backup"):
            asked = {"credentials": values.pop("credentials", None), "skip_check": values.pop("skip_check", False)}
            source = Source(**values)
            for privilege in (MANAGE_SOURCES, MANAGE_POLICIES, MANAGE_VAULTS):
                self.need(privilege, source)
            made = trials.register(source, **asked, actor=actor_of(request), now=timezone.now())
        else:
            source = self._save(request, Source(), values)
        answer = RegisteredSerializer(source, context={"made": made})
        return Response(answer.data, status=status.HTTP_201_CREATED, headers={"Cache-Control": "no-store"})

    @extend_schema(responses={200: PlanSerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=None)
    def plans(self, request: Request, pk: str) -> Response:
        """List the source's plans (A17, A28)."""
        found = self.get_object().plans.select_related("vault").order_by("-created_at")
        return Response(PlanSerializer(found, many=True).data)

    @extend_schema(request=BucketPlanRequestSerializer, responses={201: NewPlanSerializer}, filters=False)
    @plans.mapping.post
    def add_plan(self, request: Request, pk: str) -> Response:
        """Make a plan of the source: without a word the trial of a bucket (A18), else a full plan.

        `recovery_key` opens the trial's own vault, and is shown this once. 409 `trial_for_buckets`, `trial_exists`,
        `trial_covers_the_bucket`, `archive_bucket`, `not_in_region` tell why there is none.
        """
        source, wanted = self.get_object(), self.checked(BucketPlanRequestSerializer)
        actor, now, recovery_key = actor_of(request), timezone.now(), ""
        if wanted["edition"] == Edition.TRIAL:
            self.need(MANAGE_VAULTS, source)
            made = trials.create(source, actor=actor, now=now)
            plan, recovery_key = made.plan, made.recovery_key
        else:
            plan = Plan(source=source, policy=wanted["policy"], vault=wanted["vault"], account=source.account)
            services.create_plan(plan, actor=actor, now=now)
        answer = NewPlanSerializer({"plan": plan, "recovery_key": recovery_key})
        return Response(answer.data, status=status.HTTP_201_CREATED, headers={"Cache-Control": "no-store"})


class ConvertiblePlanView(PlanView):
    """Plans of the caller's accounts. A plan is run by posting a backup job."""

    permissions: ClassVar = {**PlanView.permissions, "convert": MANAGE_POLICIES}

    @extend_schema(request=ConversionSerializer, responses={200: PlanSerializer})
    @action(detail=True, methods=["post"])
    def convert(self, request: Request, pk: str) -> Response:
        """Make a full plan of a trial, also of one that is over while its vault is there; it keeps the vault for ever.

        409 `conversion_unconfirmed` without `confirmed`, `not_a_trial`, `trial_released`.
        """
        plan, wanted = self.get_object(), self.checked(ConversionSerializer)
        trials.convert(plan, actor=actor_of(request), now=timezone.now(), **wanted)
        return Response(PlanSerializer(plan).data)

"""Who a request of the API comes from: a token, which may do less than its owner."""

from django.utils import timezone
from drf_spectacular.contrib.knox_auth_token import KnoxTokenScheme
from knox import auth
from knox.models import AuthToken

from accounts import tokens
from accounts.models import User


class TokenAuthentication(auth.TokenAuthentication):
    """Knox's, which keeps hashes alone; then the token's scope narrows the person."""

    def validate_user(self, auth_token: AuthToken) -> tuple[User, AuthToken]:
        user, token = super().validate_user(auth_token)
        tokens.use(user, token, now=timezone.now())
        return user, token


class TokenScheme(KnoxTokenScheme):  # type: ignore[no-untyped-call]  # its base registers itself
    """Tells the schema that tokens are used as knox's are."""

    target_class = "accounts.authentication.TokenAuthentication"

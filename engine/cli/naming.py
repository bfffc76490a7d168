"""Which points were meant by commands that change what becomes of them."""

from engine.cli.looking import find_point
from engine.cli.opening import checking_input
from engine.vault import PointName, Vault, check_series


def named_point(vault: Vault, text: str, *, series: str = "") -> PointName:
    """Return the point: `<series>/<id>` as it is, also when it is damaged or not visible, else as every command does.

    Raises PointMissing, WrongUsage. `latest` is no name here: what it means may change while one types.
    """
    before, slash, point = text.partition("/")
    with checking_input():
        if slash:
            check_series(before)
            check_series(point)
            return PointName(before, point)
        if text == "latest":
            raise ValueError("name the point by its id: another one may be the latest by now")
    return find_point(vault, point=text, series=series)

"""What holds for all tests: a slow machine is no fault of the code that is tested."""

from hypothesis import HealthCheck, settings

from tests.exiting import end_within

settings.register_profile("remora", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("remora")


def pytest_unconfigure() -> None:
    """All is said: what is left over may not keep the run from ending."""
    end_within()

"""What holds for all tests: a slow machine is no fault of the code that is tested."""

from hypothesis import HealthCheck, settings

settings.register_profile("remora", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("remora")

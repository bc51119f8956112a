"""Two nodes on this machine, which nothing outside can see."""

from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
SETTINGS = {
    "PYTHONPATH": str(SOURCE),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray looks for an address that other machines can reach
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONWARNINGS": "ignore",
}
NODE = {
    "num_cpus": 1,
    "memory": 1 << 30,
    "object_store_memory": 80 << 20,
    "node_ip_address": "127.0.0.1",
    "include_dashboard": False,
}
ALERT = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}

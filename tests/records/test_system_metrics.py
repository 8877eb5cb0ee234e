from pipeline.system_metrics import SystemMetrics


def test_samples_are_due_by_the_clock_and_hold_plausible_figures() -> None:
    now = [0.0]
    machine = SystemMetrics(lambda: {"gpu_0_memory_usage_megabytes": 7.0}, every_seconds=10.0, clock=lambda: now[0])
    assert not machine.due()
    now[0] = 10.0
    assert machine.due()
    sample = machine.sample()
    assert not machine.due()
    assert 0 <= sample["cpu_utilization_percentage"] <= 100
    assert 0 < sample["system_memory_usage_percentage"] <= 100
    assert 1 < sample["process_memory_megabytes"] < sample["system_memory_usage_megabytes"] + 1e6
    assert sample["gpu_0_memory_usage_megabytes"] == 7.0

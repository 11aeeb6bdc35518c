"""Runs 20 tasks of two drivers at once and prints their peak usage."""

import asyncio
import sys

from cameleer import ExitResult, Host, TaskConfig

LOOP = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


async def run(host: Host, number: int) -> ExitResult:
    if number % 2:
        mock = {"run_for": "1s", "cpu_user_percent": 10 * number, "memory_bytes": number << 20}
        return await host.run(TaskConfig(name=f"mock-{number}", driver_config=mock), driver="mock")
    return await host.run(TaskConfig(name=f"loop-{number}", command=sys.executable, args=["-c", LOOP]))


async def main() -> None:
    async with Host({"telemetry": {"publish_allocation_metrics": True, "collection_interval": "200ms"}}) as host:
        for result in await asyncio.gather(*(run(host, number) for number in range(20))):
            cpu, memory = result.usage.cpu_percent_peak, result.usage.memory_peak_bytes
            print(f"{result.driver:8} {result.status:8} CPU {cpu or 0:4.0f} %  memory {(memory or 0) >> 20:4} MiB")


asyncio.run(main())

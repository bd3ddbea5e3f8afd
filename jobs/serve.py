"""The base and all published adapters behind one OpenAI-compatible endpoint, until Ctrl-C."""

from slm_ray.adapters import check_base
from slm_ray.command import output_folder, run
from slm_ray.config import ServeConfig
from slm_ray.signals import wait_for_signal


def main(config: ServeConfig) -> None:
    check_base(config.base, setting="base")
    folder = output_folder(config.adapters_dir, setting="adapters_dir", is_written=False)
    # Ray takes seconds to import: what is wrong with the settings is said before.
    from slm_ray.cluster import connect
    from slm_ray.serving import deploy, shutdown

    connect()
    endpoint = deploy(config.model_copy(update={"adapters_dir": str(folder)}))
    print(f"{config.name} answers at {endpoint.url}/v1 (Ctrl-C ends it)", flush=True)
    try:
        wait_for_signal()
    finally:
        if not config.keep_alive:
            shutdown()


if __name__ == "__main__":
    run(main, ServeConfig, __doc__)

"""The base and all published adapters behind one OpenAI-compatible endpoint, until Ctrl-C."""

import signal

from slm_ray.cluster import connect
from slm_ray.command import output_folder, run
from slm_ray.config import ServeConfig
from slm_ray.serving import deploy, shutdown


def main(config: ServeConfig) -> None:
    connect()
    endpoint = deploy(config.model_copy(update={"adapters_dir": str(output_folder(config.adapters_dir))}))
    print(f"{config.name} answers at {endpoint.url}/v1 (Ctrl-C ends it)", flush=True)
    try:
        signal.pause()
    finally:
        if not config.keep_alive:
            shutdown()


if __name__ == "__main__":
    run(main, ServeConfig, __doc__)

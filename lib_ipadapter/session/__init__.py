"""One job: from units to an attached UNet and back to a clean one."""

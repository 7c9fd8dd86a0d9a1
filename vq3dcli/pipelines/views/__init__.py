"""From inputs to videos and stills of novel views."""

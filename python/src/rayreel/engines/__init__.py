"""The engines that come with rayreel: `python -m rayreel ENGINE`."""

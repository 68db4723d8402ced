"""`mmsearch plan`: whether a configuration fits its hardware, told before anything is started."""

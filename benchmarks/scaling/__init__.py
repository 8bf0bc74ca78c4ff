"""What many processes cost, calculated from stated assumptions; and what of it can be measured on one machine."""

"""What the machine does to it: full disks, few descriptors, kills, stops, overload."""

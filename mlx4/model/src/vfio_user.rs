//! Serves an HCA to a VMM over vfio-user.

"""Made-up workloads. When requests come (`poisson`, `bursty`, `diurnal`) and what they ask are chosen independently."""

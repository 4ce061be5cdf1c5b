// The loops for AVX-512 (F, BW, DQ, VL); setup.py gives this file its compiler options.
#define CBAM_ISA avx512
#include "kernels_body.h"

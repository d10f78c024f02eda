# Each instruction set is one file with its own flags. Kernels are optimised in every build type, since the tests run
# models; with sanitizers less so, since their checks make the unrolled code slow to compile.
if(XGEN_SANITIZE)
  set(kernel_optimisation -O1)
else()
  set(kernel_optimisation -O3)
endif()
set_source_files_properties(src/kernels/cpu/scalar.cpp PROPERTIES COMPILE_OPTIONS "${kernel_optimisation};-Wno-psabi")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_source_files_properties(src/kernels/cpu/avx2.cpp PROPERTIES
    COMPILE_OPTIONS "${kernel_optimisation};-mavx2;-mfma;-mf16c")
  set_source_files_properties(src/kernels/cpu/avx512.cpp src/kernels/cpu/amx.cpp PROPERTIES
    COMPILE_OPTIONS "${kernel_optimisation};-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx512vnni;-mprefer-vector-width=256;$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>")
endif()

# Helpers of the build: compiler settings, the third-party libraries as xgen_* targets, and xgen_room().

find_package(Threads REQUIRED)

add_library(xgen_flags INTERFACE)
target_compile_options(xgen_flags INTERFACE
  -Wall -Wextra -Wpedantic -Werror -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Woverloaded-virtual
  -Wnull-dereference -Wno-missing-field-initializers
  # Same bits whatever the optimiser sees: a*b+c is fused only where the code says so.
  -ffp-contract=off
  -fno-omit-frame-pointer)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 reports false positives from inlined library code.
  target_compile_options(xgen_flags INTERFACE -Wno-null-dereference -Wno-restrict -Wno-maybe-uninitialized
    -Wno-array-bounds -Wno-stringop-overflow -Wno-stringop-overread -Wno-dangling-pointer -Wno-free-nonheap-object)
  if(XGEN_SANITIZE MATCHES "thread")
    target_compile_options(xgen_flags INTERFACE -Wno-tsan)
  endif()
endif()
if(XGEN_SANITIZE)
  target_compile_options(xgen_flags INTERFACE -fsanitize=${XGEN_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(xgen_flags INTERFACE -fsanitize=${XGEN_SANITIZE})
else()
  # One file that needs nothing but glibc.
  target_link_options(xgen_flags INTERFACE -static-libstdc++ -static-libgcc -Wl,--gc-sections)
  target_compile_options(xgen_flags INTERFACE -ffunction-sections -fdata-sections)
endif()
target_include_directories(xgen_flags INTERFACE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(xgen_flags INTERFACE Threads::Threads)

function(xgen_static_lib target header library)
  find_path(${target}_INCLUDE ${header} REQUIRED)
  add_library(${target} INTERFACE)
  target_include_directories(${target} SYSTEM INTERFACE ${${target}_INCLUDE})
  foreach(name IN LISTS library)
    find_library(${target}_${name} NAMES lib${name}.a REQUIRED)
    target_link_libraries(${target} INTERFACE ${${target}_${name}})
  endforeach()
endfunction()

xgen_static_lib(xgen_json boost/json.hpp boost_json)
xgen_static_lib(xgen_yaml yaml-cpp/yaml.h yaml-cpp)
xgen_static_lib(xgen_pcre2 pcre2.h pcre2-8)
xgen_static_lib(xgen_utf8proc utf8proc.h utf8proc)
target_compile_definitions(xgen_utf8proc INTERFACE UTF8PROC_STATIC)
xgen_static_lib(xgen_openssl openssl/ssl.h "ssl;crypto")

add_library(xgen_asio INTERFACE)
target_compile_definitions(xgen_asio INTERFACE BOOST_ASIO_NO_DEPRECATED BOOST_ASIO_DISABLE_BOOST_COROUTINE)

# xgen_room(NAME USES room… LIBS lib…): static library xgen_NAME from src/NAME/**.cpp.
function(xgen_room name)
  cmake_parse_arguments(ARG "" "" "USES;LIBS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cpp)
  if(sources)
    add_library(xgen_${name} STATIC ${sources})
    set(scope PUBLIC)
  else()
    add_library(xgen_${name} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_link_libraries(xgen_${name} ${scope} xgen_flags ${ARG_LIBS})
  foreach(room IN LISTS ARG_USES)
    target_link_libraries(xgen_${name} ${scope} xgen_${room})
  endforeach()
  if(EXISTS ${PROJECT_SOURCE_DIR}/src/${name}/room.cmake)
    include(${PROJECT_SOURCE_DIR}/src/${name}/room.cmake)
  endif()
endfunction()

# xgen_test(NAME LIBS…): GoogleTest program test_NAME from tests/NAME/*.cpp.
function(xgen_test name)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${name}/*.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(test_${name} ${sources})
  target_include_directories(test_${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(test_${name} PRIVATE XGEN_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(test_${name} PRIVATE ${ARGN} GTest::gmock_main GTest::gtest)
  add_test(NAME ${name} COMMAND test_${name})
endfunction()

# The product: src/*.cpp plus the embedded demo model.
function(xgen_program)
  include(cmake/embed_demo.cmake)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/*.cpp)
  add_executable(xgen-model ${sources})
  target_compile_definitions(xgen-model PRIVATE XGEN_VERSION="${PROJECT_VERSION}")
  target_link_libraries(xgen-model PRIVATE xgen_server xgen_registry xgen_sources xgen_engine xgen_remote xgen_client xgen_gateway
                        xgen_config xgen_import xgen_metrics xgen_trace xgen_demo)
  # The names of our functions stay in a stripped program, for the stack of a crash; every thread has room to tell of one.
  target_link_options(xgen-model PRIVATE "-Wl,--export-dynamic-symbol=_ZN4xgen*,--wrap=pthread_create")
endfunction()

# The demo model's files (models/demo/) become part of the program: assembled with .incbin, listed in a generated table.
file(GLOB demo_files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/models/demo/*.json ${PROJECT_SOURCE_DIR}/models/demo/*.safetensors
     ${PROJECT_SOURCE_DIR}/models/demo/*.jinja)
set(demo_asm "    .section .rodata.xgen_demo,\"a\",@progbits\n")
set(demo_extern "")
set(demo_rows "")
set(index 0)
foreach(path IN LISTS demo_files)
  get_filename_component(name ${path} NAME)
  string(APPEND demo_asm
    "    .balign 64\n    .globl xgen_demo_${index}\nxgen_demo_${index}:\n    .incbin \"${path}\"\n"
    "    .globl xgen_demo_${index}_end\nxgen_demo_${index}_end:\n    .byte 0\n")
  string(APPEND demo_extern "extern const char xgen_demo_${index};\nextern const char xgen_demo_${index}_end;\n")
  string(APPEND demo_rows
    "      {\"${name}\", {&xgen_demo_${index}, static_cast<std::size_t>(&xgen_demo_${index}_end - &xgen_demo_${index})}},\n")
  math(EXPR index "${index} + 1")
endforeach()
file(GENERATE OUTPUT ${PROJECT_BINARY_DIR}/demo/demo_files.S CONTENT "${demo_asm}    .section .note.GNU-stack,\"\",@progbits\n")
file(GENERATE OUTPUT ${PROJECT_BINARY_DIR}/demo/demo_files.cpp CONTENT
"#include \"demo_model.h\"

extern \"C\" {
${demo_extern}}

namespace xgen {

std::shared_ptr<const FileSet> demo_model_files() {
  return embedded_files(\"builtin:xgen-demo\", {
${demo_rows}  });
}

}  // namespace xgen
")
set_source_files_properties(${PROJECT_BINARY_DIR}/demo/demo_files.S PROPERTIES OBJECT_DEPENDS "${demo_files}")
add_library(xgen_demo STATIC ${PROJECT_BINARY_DIR}/demo/demo_files.S ${PROJECT_BINARY_DIR}/demo/demo_files.cpp)
target_link_libraries(xgen_demo PUBLIC xgen_flags xgen_base)

// The files of the model that the program carries inside itself (models/demo/, embedded by cmake/embed_demo.cmake).
#pragma once

#include <memory>

#include "base/file_set.h"

namespace xgen {

std::shared_ptr<const FileSet> demo_model_files();

}  // namespace xgen

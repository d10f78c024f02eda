// Binds names as jinja2's compiler does: every variable gets a slot in the function (template, macro, call block,
// recursive loop) that owns it, and every scope a list of what its slots start with. That reproduces jinja2's scoping
// exactly: an assignment inside a loop is gone after the iteration, a macro sees later top-level assignments, and so
// on.
#pragma once

#include "text/jinja/ast.h"

namespace xgen::text::jinja {

// Throws TemplateError (syntax), e.g. for a filter that does not exist.
Tree bind_names(NodeList body);

}  // namespace xgen::text::jinja

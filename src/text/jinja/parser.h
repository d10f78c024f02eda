// Text to syntax tree: jinja2's grammar with the loopcontrols extension and transformers' generation tag.
#pragma once

#include <string_view>

#include "text/jinja/ast.h"

namespace xgen::text::jinja {

// Throws TemplateError (syntax). Names are not bound yet.
NodeList parse(std::string_view source);

}  // namespace xgen::text::jinja

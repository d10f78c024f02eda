# What is installed, and the Debian package of it (`./xgen package`, or cpack in the build folder).

install(TARGETS xgen-model DESTINATION bin)
# A crash report needs the names of functions, not the lines.
install(CODE "execute_process(COMMAND ${CMAKE_STRIP} --strip-debug \$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/bin/xgen-model)")
install(FILES LICENSE DESTINATION share/doc/xgen-model RENAME copyright)
# The pages, and what they lead to, where their links expect it.
install(FILES README.md ARCHITECTURE.md CONTRIBUTING.md LICENSE DESTINATION share/doc/xgen-model)
install(DIRECTORY docs DESTINATION share/doc/xgen-model)
install(DIRECTORY deploy/config deploy/helm deploy/k8s deploy/monitoring deploy/proxy deploy/python
  DESTINATION share/doc/xgen-model/deploy PATTERN __pycache__ EXCLUDE)
install(FILES deploy/config/models.yaml DESTINATION /etc/xgen-model)
install(FILES deploy/systemd/xgen-model.service DESTINATION /lib/systemd/system)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_PACKAGE_CONTACT "The xgen-model authors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Serves language models over the OpenAI API")
set(CPACK_PACKAGE_DESCRIPTION "One process that is both the HTTP server and the inference engine. Installing it starts the service xgen-model,
configured by /etc/xgen-model/models.yaml; it answers on port 8000 with a small built-in model until others are listed there.")
set(CPACK_DEBIAN_PACKAGE_SECTION net)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "adduser, ca-certificates")
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
foreach(script conffiles postinst prerm postrm)
  list(APPEND CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${PROJECT_SOURCE_DIR}/deploy/debian/${script})
endforeach()
include(CPack)

/* schema.h - the tables of the database, as the steps that made them. */
#pragma once

/* Applied in order, each in one transaction that counts it in user_version; ends with NULL. A step
 * that has been released is never changed: what it lacks is a new step at the end. */
extern const char *const db_schema[];
